"""The options of `csd-nerf history`, and its course."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from csd_nerf.files import check_output


@dataclass
class History:
    """Show the edits that a run is made of, from the captured scene on: a table, and a page with pictures.

    Every one of them is still there, to be viewed, rendered, measured, or edited in another way.
    """

    edit: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of an edit, as `ns-train csd-edit` printed it."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """HTML file to write. Without it: history.html in the run folder."""

    def run(self) -> None:
        """Print and write.

        Raises:
            InputError: there is no run at the path, or the page cannot be written.
        """
        if self.output is not None:
            check_output(self.output, [".html"], force=True)
        from rich.console import Console
        from rich.table import Table

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nerfstudio's and torch's about their own code, line after line
            from csd_nerf.history.history_page import write_history_page
            from csd_nerf.nerf.chain import chain_of

            links = chain_of(self.edit)
        console = Console()
        table = Table("", "edit", "method", "strength", "cost", "run folder")
        for number, link in enumerate(links):
            table.add_row(
                str(number),
                Text(link.prompt or ("gone" if link.gone else "the scene")),
                link.method,
                f"{link.strength:g}" if link.prompt else "",
                link.cost.in_words() if link.cost else "",
                Text(str(link.folder), overflow="fold"),
            )
        console.print(table)
        if links[0].gone:
            warning = f"Gone: {links[0].folder}. Put it back where it was to see what came before."
            console.print(Text(warning, "bold yellow"), soft_wrap=True)
        output = self.output or links[-1].folder / "history.html"
        write_history_page(output, links)
        console.print(Text(f"Written: {output}"), soft_wrap=True)
