"""The one command line: `tcar VERB`, or `python -m tcar VERB`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from tcar.ground.errors import TcarError, unknown
from tcar.ground.instructions import add_as_avx2

VERBS = {
    "doctor": "what is installed, found and missing, each fault with its fix",
    "prepare": "make a dataset folder of what was downloaded, in whatever form",
    "audit": "look at every video again, and say what has changed",
    "fetch": "fetch the published weights that a parameter file needs",
    "plan": "say what the tokens of a run take of disk and hours",
    "extract": "make the tokens of both streams, or what is missing of them",
    "verify": "read every byte of a token store again",
    "train": "make the trainings of a run, on one process or many",
    "paper": "run stale notebooks, draw figures and tables, compile the paper",
    "search": "search for better parameters",
    "replicates": "compare the methods on other clips, streams and trainings",
    "recipes": "find how long each method trains, and at which learning rate",
    "terms": "compare each loss term and regulariser with its absence",
    "pairs": "train the headline method on other pairs of frozen streams",
    "miniatures": "compare with published designs in miniature, on the same clips",
    "explanations": "say which methods of explanation can be believed of the model",
    "predict": "name the action in a video",
    "tabletop": "render the synthetic benchmark to a folder, in any size",
    "rehearse": "run a parameter file in small on an imitation of the dataset",
    "streams": "train the small streams and baselines of the package again",
    "notebooks": "open JupyterLab on copies of the notebooks",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with its arguments in one line, as all other errors are said."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help shows how it is called\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; 0 where all went well, 1 where it found something wrong, 2 for what cannot be done as asked."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    listed = "\n".join(f"  {verb:<13}{about}" for verb, about in VERBS.items())
    parser = _Parser(
        "tcar", usage="tcar VERB … (tcar VERB --help shows its options, and an example)", description=listed,
        formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False,
    )  # fmt: skip
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    parser.add_argument("verb", metavar="VERB", help=argparse.SUPPRESS)
    verb = parser.parse_args(given[:1]).verb
    if verb not in VERBS:
        parser.error(f"{verb!r} is no verb, {unknown(verb, VERBS)}")
    return command(verb, given[1:])


def command(verb: str, arguments: Sequence[str]) -> int:
    """Run a verb on the arguments after it; gives the exit status."""
    module = import_module(f"tcar.lab.commands.{verb}")
    parser = _Parser(
        f"tcar {verb}", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=module.__doc__.strip(), epilog=f"example:\n  {module.EXAMPLE}",
    )  # fmt: skip
    module.add_arguments(parser)
    try:
        return module.run(parser.parse_args(arguments))
    except TcarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        print(f"error: {where}; mend this and run the same command again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what is done is kept; the same command goes on here", file=sys.stderr)
        return 130


def entry() -> int:
    """Run the command line of a process of its own, whose processor adds as every other does."""
    add_as_avx2()
    return main()


if __name__ == "__main__":
    sys.exit(entry())
