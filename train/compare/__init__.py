"""Many networks on the same photos: accuracy, consistency and cost, and which differences are more than chance."""
