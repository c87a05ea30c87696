"""Speed and memory of aa_flax beside its peers; `python -m benchmarks` lists what there is."""
