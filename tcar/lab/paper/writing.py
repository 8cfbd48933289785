"""A table of finished text, as CSV and as LaTeX."""

import csv
import io
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of finished text: what typst, CSV and LaTeX show is the same strings."""

    name: str
    caption: str
    columns: list[str]
    rows: list[list[str]]


def to_csv(table: Table) -> str:
    """The table as CSV with a header line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    return text.getvalue()


def latex(text: str) -> str:
    """Plain text for LaTeX: special characters escaped, typographic ones as commands."""
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$",
        "…": r"\ldots{}", "≈": r"$\approx$",
    }
    return "".join(special.get(c, c) for c in text)


def to_latex(table: Table) -> str:
    """The table as a LaTeX float (needs `\\usepackage{booktabs}`); a column of sources becomes citations."""
    cited = table.columns.index("Sources") if "Sources" in table.columns else None
    kept = [i for i, column in enumerate(table.columns) if column != "Frozen"]
    lines = [" & ".join(rf"\cite{{{row[i].replace(' ', ',')}}}" if i == cited else latex(row[i])
                        for i in kept) for row in table.rows]
    place = "table*" if len(kept) > 4 else "table"
    return "\n".join([
        rf"\begin{{{place}}}[t]", r"  \centering\small", rf"  \caption{{{latex(table.caption)}}}",
        rf"  \label{{tab:{table.name}}}", rf"  \begin{{tabular}}{{{'l' * len(kept)}}}", r"    \toprule",
        f"    {' & '.join(latex(table.columns[i]) for i in kept)} \\\\",
        r"    \midrule",
        *(rf"    {line} \\" for line in lines),
        r"    \bottomrule", r"  \end{tabular}", rf"\end{{{place}}}", "",
    ])
