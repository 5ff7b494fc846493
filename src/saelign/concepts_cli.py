"""`saelign concepts`: list, show, build, propose, check."""

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saelign.concepts import Concept, Findings

EPILOGS = {
    "list": "example:\n  saelign concepts list",
    "show": "example:\n  saelign concepts show Emotions",
    "build": "examples:\n"
    "  saelign concepts build Feelings --synset emotion.n.01 --out feelings.yaml\n"
    "  saelign concepts build Trees --synset tree.n.01 --depth 2 --seed-words oak,elm",
    "propose": "example:\n  saelign concepts propose Ships --model gpt-4o --lists 3",
    "check": "example:\n  saelign concepts check feelings.yaml --study study.yaml",
}
WIDTH = 98
MOST_SHOWN = 40
"""Words of a finding that are printed; JSON has all."""


def add_concepts(commands: Any, progress: Callable[[], Any]) -> None:
    """Give a command line the command `concepts`.

    Args:
        commands: What `add_subparsers` gave.
        progress: Gives a context in which progress is told.
    """
    top = commands.add_parser(
        "concepts",
        help="list, show, build, propose and check lists of keywords",
        description="Lists of keywords that stand for a concept: emotions, time, countries.",
        epilog="example:\n  saelign concepts list",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subs = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, call: Callable[[Any], None], told: str) -> argparse.ArgumentParser:
        sub = subs.add_parser(
            name,
            help=told,
            description=f"{told[0].upper()}{told[1:]}.",
            epilog=EPILOGS[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        sub.set_defaults(call=call)
        return sub

    command("list", list_command, "list the concepts that come with saelign")

    sub = command("show", show_command, "print a concept's keywords by where they come from")
    sub.add_argument("concept", metavar="NAME", help="a shipped concept, or a file")

    sub = command("build", build_command, "make a concept of the words below synsets of WordNet")
    sub.add_argument("name", metavar="NAME", help="what to call it")
    sub.add_argument(
        "--synset",
        metavar="SYNSET",
        action="append",
        default=[],
        help="take the words at and below it, such as emotion.n.01; can be given again",
    )
    sub.add_argument(
        "--seed-words", metavar="A,B", type=words, default=[], help="hold these words in any case"
    )
    sub.add_argument("--depth", metavar="N", type=count, help="steps down from a synset at most")
    sub.add_argument(
        "--no-instances", action="store_true", help="leave single things out, as France of country"
    )
    sub.add_argument("--multiword", action="store_true", help="take words of several words too")
    how = sub.add_mutually_exclusive_group()
    how.add_argument(
        "--unambiguous",
        action="store_true",
        help="only words of which all senses are in the concept (nearly no everyday word)",
    )
    how.add_argument(
        "--all-senses", action="store_true", help="every word, whatever it mostly means"
    )
    how.add_argument(
        "--share",
        metavar="SHARE",
        type=float,
        default=0.75,
        help="of a word's counted uses that must be in the concept (default: 0.75)",
    )
    sub.add_argument(
        "--min-uses",
        metavar="N",
        type=count,
        default=0,
        help="leave out words with fewer counted uses; 1 leaves everyday words",
    )
    sub.add_argument(
        "--without",
        metavar="A,B",
        type=words,
        default=[],
        help="leave out these words, and synsets with all below them",
    )
    sub.add_argument("--about", metavar="TEXT", default="", help="what the concept is")
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--wordnet", metavar="DIR", help="WordNet's dict folder, if not found")
    where.add_argument(
        "--lexicon", metavar="NAME", help="a lexicon of the wn library, such as omw-en:1.4"
    )
    sub.add_argument("--out", metavar="FILE", help="write it there instead of printing it")

    sub = command(
        "propose", propose_command, "make a concept of words that lists of a language model share"
    )
    sub.add_argument("name", metavar="NAME", help="what to call it")
    sub.add_argument("--model", metavar="MODEL", required=True, help="as the endpoint calls it")
    sub.add_argument("--lists", metavar="N", type=count, default=3, help="how many (default: 3)")
    sub.add_argument(
        "--words", metavar="N", type=count, default=60, help="words in a list (default: 60)"
    )
    sub.add_argument(
        "--endpoint",
        metavar="URL",
        help="an OpenAI-compatible address (default: OPENAI_BASE_URL, or that of OpenAI); the key "
        "is read from OPENAI_API_KEY",
    )
    sub.add_argument("--about", metavar="TEXT", default="", help="what the concept is")
    sub.add_argument(
        "--timeout", metavar="S", type=float, default=120.0, help="seconds to wait (default: 120)"
    )
    sub.add_argument("--out", metavar="FILE", help="where it goes (default: NAME.yaml)")
    sub.set_defaults(progress=progress)

    sub = command("check", check_command, "tell what is doubtful about a concept's keywords")
    sub.add_argument("concepts", metavar="FILE", nargs="+", help="files, or shipped concepts")
    sub.add_argument(
        "--study", metavar="STUDY", help="a study file: tells words that its tokenizer cuts"
    )


def words(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word for part in text.split(",") if (word := " ".join(part.split()))]


def count(text: str) -> int:
    """A whole number from 0."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def list_command(options: argparse.Namespace) -> None:
    """`saelign concepts list`."""
    from saelign.concepts import load_concept, shipped_concepts

    concepts = [load_concept(name) for name in shipped_concepts()]
    rows = [
        {
            "name": concept.name,
            "version": concept.version,
            "words": len(concept.keywords),
            "sources": families(concept),
        }
        for concept in concepts
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    longest = max(len(concept.name) for concept in concepts)
    print(f"{'name':{longest}}  version  words  sources")
    for row in rows:
        told = ", ".join(f"{source} {n}" for source, n in row["sources"].items())
        print(f"{row['name']:{longest}}  {row['version']:>7}  {row['words']:5}  {told}")


def families(concept: "Concept") -> dict[str, int]:
    """How many words each source gave; synsets of one WordNet together."""
    return dict(Counter(keyword.source.split(", ")[0] for keyword in concept.keywords))


def show_command(options: argparse.Namespace) -> None:
    """`saelign concepts show`."""
    from saelign.concepts import load_concept

    concept = load_concept(options.concept)
    if options.json:
        print(json.dumps(asdict(concept), indent=2))
        return
    print(f"{concept.name}, version {concept.version}, {len(concept.keywords)} keywords")
    if concept.about:
        print(textwrap.fill(concept.about, WIDTH))
    if concept.recipe:
        print(textwrap.fill(f"from {told_recipe(asdict(concept.recipe))}", WIDTH))
    for source, found in concept.by_source.items():
        print(f"\n{source} ({len(found)})\n{told_words(found)}")
    for number, one in enumerate(concept.lists, start=1):
        print(f"\nlist {number} of {one.model}, {one.created} ({len(one.words)})")
        print(told_words(list(one.words)))


def told_recipe(recipe: dict[str, Any]) -> str:
    """How keywords were taken from a WordNet, as `show` prints it."""
    told = [f"{recipe.pop('source')}: {', '.join(recipe.pop('synsets'))}"]
    words = {True: "yes", False: "no", None: "any", (): "nothing"}
    for key, value in recipe.items():
        listed = ", ".join(value) if isinstance(value, tuple) and value else value
        # 1 == True, and a share of 1 is no yes.
        known = isinstance(listed, bool | tuple) or listed is None
        told.append(f"{key.replace('_', ' ')} {words[listed] if known else listed}")
    return "; ".join(told)


def told_words(found: list[str]) -> str:
    """Words in lines."""
    return textwrap.fill(", ".join(found), WIDTH, initial_indent="  ", subsequent_indent="  ")


def build_command(options: argparse.Namespace) -> None:
    """`saelign concepts build`."""
    from saelign.concepts import build, find_wordnet

    ambiguity = "strict" if options.unambiguous else "all" if options.all_senses else "dominant"
    built = build(
        options.name,
        options.synset,
        source=find_wordnet(folder=options.wordnet, lexicon=options.lexicon),
        seed_words=options.seed_words,
        depth=options.depth,
        instances=not options.no_instances,
        multiword=options.multiword,
        ambiguity=ambiguity,
        share=options.share,
        min_uses=options.min_uses,
        without=options.without,
        about=options.about,
    )
    by_reason: dict[str, list[str]] = {}
    for word, reason in built.left_out.items():
        by_reason.setdefault(reason, []).append(word)
    told = ", ".join(
        f"{len(found)} {reason}"
        for reason, found in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    )
    finish(
        built.concept,
        options.out,
        as_json=options.json,
        more={"left_out": by_reason},
        told=f"left out {len(built.left_out)} words: {told}" if told else "left out no word",
    )


def propose_command(options: argparse.Namespace) -> None:
    """`saelign concepts propose`."""
    from saelign.concepts import propose_concept

    out = Path(options.out or f"{options.name.replace('/', '_')}.yaml").expanduser()
    partial = out.with_name(f"{out.name}.partial")
    with options.progress() as progress:
        concept = propose_concept(
            options.name,
            options.model,
            lists=options.lists,
            words=options.words,
            endpoint=options.endpoint,
            about=options.about,
            timeout=options.timeout,
            partial=partial,
            progress=progress,
        )
    lengths = ", ".join(str(len(one.words)) for one in concept.lists)
    finish(
        concept,
        out,
        as_json=options.json,
        more={},
        told=f"in common of lists of {lengths} words",
    )
    partial.unlink(missing_ok=True)


def finish(
    concept: "Concept", out: str | Path | None, *, as_json: bool, more: dict[str, Any], told: str
) -> None:
    """Write a concept where it goes and say so; or print it as its file would be."""
    from saelign.concepts.concept import as_yaml, save_concept

    path = None if out is None else save_concept(concept, out)
    if as_json:
        written = None if path is None else str(path.resolve())
        print(json.dumps({**asdict(concept), **more, "file": written}, indent=2))
        return
    if path is None:
        print(as_yaml(concept), end="")
    summary = f"{concept.name}: {len(concept.keywords)} keywords; {told}"
    print(summary, file=sys.stderr if path is None else sys.stdout)
    if path is not None:
        print(f"concept: {path.resolve()}")


def check_command(options: argparse.Namespace) -> None:
    """`saelign concepts check`."""
    from saelign.concepts import check_concept, load_concept, shipped_concepts
    from saelign.concepts.concept import concept_file, read_as_written

    given = [load_concept(name) for name in options.concepts]
    others = [*given, *(load_concept(name) for name in shipped_concepts())]
    others = list({concept.name: concept for concept in reversed(others)}.values())[::-1]
    tokenizer = None
    if options.study is not None:
        from saelign.plan import tokenizers_of
        from saelign.study import load_study

        tokenizer, _ = tokenizers_of(load_study(options.study))  # of A, if B has another
    found = [
        check_concept(read_as_written(concept_file(name)), others, tokenizer)
        for name in options.concepts
    ]
    if options.json:
        content = [
            {"concept": concept.name, "words": len(concept.keywords), **asdict(findings)}
            for concept, findings in zip(given, found, strict=True)
        ]
        print(json.dumps(content, indent=2))
        return
    for number, (concept, findings) in enumerate(zip(given, found, strict=True)):
        print(("\n" if number else "") + told_findings(concept, findings))


def told_findings(concept: "Concept", findings: "Findings") -> str:
    """What is doubtful about a concept, as `check` prints it."""
    by_other: dict[str, list[str]] = {}
    for word, names in findings.shared.items():
        for name in names:
            by_other.setdefault(name, []).append(word)
    parts = [("more than once", findings.repeated)]
    parts += [(f"in {name} too", found) for name, found in by_other.items()]
    if findings.in_pieces is not None:
        parts.append(("no single token of the study's tokenizer", findings.in_pieces))
    lines = [f"{concept.name}: {len(concept.keywords)} keywords"]
    for told, found in parts:
        if found:
            rest = f", and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
            lines.append(f"{told} ({len(found)}):\n{told_words(found[:MOST_SHOWN])}{rest}")
        elif not told.startswith("in "):
            lines.append(f"{told}: none")
    if findings.in_pieces is None:
        lines.append("tokens: not looked at, give --study to learn which words its tokenizer cuts")
    return "\n".join(lines)
