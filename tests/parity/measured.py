"""What the parity tests measured: one row a network, printed and written as a Markdown table."""

from pathlib import Path

ROWS: list[tuple[str, str, float, float, str]] = []


def add(network: str, size: tuple[int, int], logits: float, worst: float, where: str) -> None:
    """Notes the relative errors of one comparison: of the logits, and the worst of all modules with its name."""
    ROWS.append((network, "x".join(map(str, size)), logits, worst, where))


def table() -> str:
    lines = ["| network | image | logits | worst module | which |", "|---|---|---|---|---|"]
    rows = sorted(ROWS)
    lines += [f"| {n} | {size} | {logits:.1e} | {worst:.1e} | {where} |" for n, size, logits, worst, where in rows]
    lines.append(f"| worst of {len(rows)} | | {max(r[2] for r in rows):.1e} | {max(r[3] for r in rows):.1e} | |")
    return "\n".join(lines)


def write() -> None:
    """Writes the table to `out/parity.md`."""
    path = Path(__file__).parents[2] / "out" / "parity.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# Parity with PyTorch: max|a - b| / max|b|\n\n{table()}\n")
