"""The command line: `python -m tests.benchmarks --help`."""

import argparse
import json
import sys

from tests.benchmarks import measurements, report, rounds, targets


def main():
    """Measures, prints, and returns the exit code."""
    options = _options()
    wanted = measurements.every(options.largest, options.quick)
    if options.check:
        wanted = measurements.only(wanted, targets.names())
        # A minute of it, and as linear as from 16,384 to 65,536 rows.
        wanted = [m for m in wanted if m.rows <= 65_536]
    if options.only:
        wanted = measurements.only(wanted, options.only)
    measurements.require_installed(wanted)

    about = report.machine()
    command = " ".join(["python -m tests.benchmarks", *sys.argv[1:]])
    print(report.heading(command, about), flush=True)
    if options.check:
        results = rounds.run_together(
            wanted,
            set(targets.names("extra_bytes")),
            options.dimensions,
            _progress,
        )
        _write(options.json, command, about, results)
        lines, met = report.target_table(targets.TARGETS, results)
        print("\n" + lines)
        return 0 if met else 1

    scale_wanted = [m for m in wanted if m.is_scale]
    results = {}
    for measurement in wanted:
        if measurement.is_scale:
            continue
        found = rounds.run(
            measurement, options.rounds, options.dimensions, _progress
        )
        results[measurement.name] = found
        print("\n" + report.table(measurement.name, found), flush=True)
        _write(options.json, command, about, results)
    if scale_wanted:
        scale = rounds.run_scale(
            scale_wanted, options.rounds, options.dimensions, _progress
        )
        results.update(scale)
        print("\n" + report.scale_table(scale), flush=True)
        _write(options.json, command, about, results)

    lines, _ = report.target_table(targets.TARGETS, results)
    print("\n" + lines)
    return 0


def _options():
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Speed and memory beside the peers. See the docstring of "
        "the package for how it is measured.",
    )
    add = parser.add_argument
    add(
        "--check",
        action="store_true",
        help="measure what the targets name, once; exit code 1 on a miss",
    )
    add(
        "--only",
        nargs="+",
        metavar="NAME",
        help="the beginning of a measurement's name, or measurement:contender",
    )
    add("--rounds", type=int, help="turns of each, 3")
    add("--quick", action="store_true", help="one round, small batches")
    add("--dimensions", type=int, default=64, help="D, 64")
    add("--largest", type=int, default=131_072, help="most rows, 131,072")
    add("--json", default="benchmarks.json", metavar="FILE")
    options = parser.parse_args()
    if options.quick and options.check:
        parser.error("the targets are for full sizes: no --quick with --check")
    if options.check and options.rounds:
        parser.error("`--check` has one round. Leave `--check` out for more.")
    if options.rounds is None:
        options.rounds = 1 if options.quick else 3
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


def _progress(line):
    print(line, file=sys.stderr, flush=True)


def _write(path, command, about, results):
    content = {
        "command": command,
        "machine": about,
        "results": results,
        "targets": [
            {**target._asdict(), "figure": target.figure(results)}
            for target in targets.TARGETS
        ],
    }
    with open(path, "w") as file:
        json.dump(content, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
