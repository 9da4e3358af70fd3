"""Trains, converts, quantizes, judges, and puts the tokenizer beside the models: ``python examples/sentiment/bundle.py``."""

import sys
from pathlib import Path

import toolkit

HERE = Path(__file__).resolve().parent


def main(project=HERE, output=HERE / "edgekit-out"):
    """Runs the project; prints each row, and where the files are."""
    sys.path.insert(0, str(HERE))
    import sentiment

    done = toolkit.run(project, output=output)
    for row in done.report.rows:
        print(row.artifact, row.target, row.metric, row.verdict, row.reason)
    file = done.folder / "models" / "tokenizer.json"
    sentiment.tokenizer().save(str(file))
    print("models and tokenizer:", file.parent)
    return toolkit.exit_code(done.report)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except toolkit.ToolkitError as error:
        raise SystemExit(f"error: {error}\n  -> {error.hint}") from None
