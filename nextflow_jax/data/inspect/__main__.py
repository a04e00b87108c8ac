"""`python -m nextflow_jax.data.inspect`: what shards or a corpus hold, and whether every record of them is whole."""

import pathlib
from collections.abc import Sequence

from nextflow_jax import command
from nextflow_jax.data.atomic_files import write_atomically
from nextflow_jax.data.corpus.manifest import is_corpus
from nextflow_jax.data.inspect.findings import as_text
from nextflow_jax.errors import UserError, run_entry_point

DESCRIPTION = """\
Prints what DIR holds, the shards of nextflow_jax.extract or the corpus of nextflow_jax.data.ingest: documents by split,
task and source, lengths, tokens and codes, and of a corpus what was left out and why. Reads every record: shards are
decoded and compared with their index, a corpus' pictures are decoded. Broken records are listed by their keys, and the
exit status is then 1. --html also writes a page that shows samples: of shards as the tokenizer beside them decodes
them, inputs and targets side by side."""


def main(arguments: Sequence[str]) -> None:
    """Inspects one directory; see --help."""
    parser = command.command_parser("data.inspect", DESCRIPTION, example="runs/shards --html runs/shards.html")
    parser.add_argument("directory", metavar="DIR", type=pathlib.Path, help="shards or a corpus")
    parser.add_argument("--html", metavar="FILE", type=pathlib.Path, help="page to write, with everything inside it")
    parser.add_argument("--samples", metavar="N", type=int, default=48, help="documents on the page (%(default)s)")
    parser.add_argument(
        "--max-records", metavar="M", type=int, help="read only so many records, evenly spread, and no checksums"
    )
    options = parser.parse_args(arguments)
    for name in ("samples", "max_records"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    broken = inspect_directory(options.directory, options.html, options.samples, options.max_records)
    if broken:
        again = "ingest" if is_corpus(options.directory) else "extract"
        raise UserError(f"{broken:,} records or files of {options.directory} are broken, listed above; {again} again")


def inspect_directory(directory: pathlib.Path, html: pathlib.Path | None, samples: int, max_records: int | None) -> int:
    """Prints the findings and writes the page, if one is wanted.

    Returns:
      How many records and files are broken.

    Raises:
      UserError: neither shards nor a corpus, or one whose files are not all there.
    """
    # Imported here: reading takes JAX along, which --help need not wait for.
    if is_corpus(directory):
        from nextflow_jax.data.inspect.corpus_check import check_corpus as check
    else:
        from nextflow_jax.data.inspect.shard_check import check_shards as check

    findings = check(directory, max_records)
    for table in findings.tables:
        print(as_text(table), end="\n\n")
    for broken in findings.broken:
        print(broken)
    print(f"{directory}: {findings.checked:,} of {findings.records:,} records read, {len(findings.broken):,} broken")
    if html is not None:
        from nextflow_jax.data.inspect.samples import corpus_samples, make_page, shard_samples

        shown = (corpus_samples if is_corpus(directory) else shard_samples)(directory, samples)
        text = make_page(directory, findings, shown)
        html.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(html, lambda path: path.write_text(text, encoding="utf-8"))
        print(f"page: {html}")
    return len(findings.broken)


if __name__ == "__main__":
    run_entry_point(main)
