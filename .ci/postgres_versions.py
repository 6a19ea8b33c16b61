"""Runs the core of the tests on other versions of Postgres, whose binaries are fetched from Maven Central.

    .ci/postgres_versions.py              every supported version, the whole core
    .ci/postgres_versions.py 14 18        these versions
    .ci/postgres_versions.py --short      two that this machine lacks, another pair each day, and the part of the core that CI has time for

OUTBOX_RELAY_POSTGRES_VERSIONS="14 18" chooses the versions as the arguments do.
"""

import argparse
import datetime
import itertools
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUPPORTED = [14, 15, 16, 17, 18]

# By suite: texts in the names of trials. The first list of each is CI's part.
CORE = {
    "main": (
        [
            "guarantees::every_committed_event_is_published_once_and_none_that_was_rolled_back",
            "guarantees::jsonb_payloads_keys_and_bytes_arrive_as_postgres_holds_them",
            "order::a_row_that_another_session_has_locked_is_not_overtaken_by_its_entity",
            "order::events_of_many_open_transactions_are_published_before_their_successors",
            "crashes::rows_in_the_hands_of_a_killed_relay_are_taken_over_at_once",
            "migrations::later_migrations_apply_while_the_outbox_of_the_first_is_in_use",
            "migrations::the_printed_script_makes_the_same_outbox",
            "plans::",
            "held_snapshot::",
            "emit::the_id_of_an_event_is_unique_and_follows_time",
            "retention::only_events_published_long_ago_are_pruned",
            "status::relays_are_shown_with_their_lanes_and_what_they_do",
            "check::a_sound_outbox_with_a_user_of_its_own_has_no_error_and_no_warning",
            "roles::each_role_does_its_work_alone",
        ],
        [
            "guarantees::",
            "order::",
            "crashes::",
            "migrations::",
            "emit::",
            "inbox::",
            "retention::",
            "status::",
            "check::",
            "roles::",
            "trust::",
            "verify::",
            "wake_up::",
            "odd_databases::settings_of_the_database_change_nothing",
        ],
    ),
    "faults": (
        [
            "exactly_once::no_duplicate_of_relays_killed_before_the_marks",
        ],
        [
            "exactly_once::no_duplicate_of_relays_killed_at_random_moments",
            "exactly_once::no_duplicate_of_relays_killed_after_the_transaction_is_committed",
            "exactly_once::no_duplicate_of_sessions_that_end_after_the_transaction_is_committed",
            "relays::relays_killed_after_the_marks_and_before_the_commit",
        ],
    ),
    "histories": (
        ["quiet::an_event_of_the_newest_transaction_goes_out_before_the_next_of_its_entity"],
        ["quiet::", "sequence::", "locked::", "random::"],
    ),
}


RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored")


def of_this_machine():
    """Returns the version that the whole suite runs on: the newest that Debian's packages have put here, or none."""
    found = [int(path.parent.name) for path in pathlib.Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    return max(found, default=None)


def pair_of(day):
    """Returns two versions that this machine lacks. Each pair comes once in six days."""
    pairs = list(itertools.combinations([version for version in SUPPORTED if version != of_this_machine()], 2))
    return list(pairs[day.toordinal() % len(pairs)])


def run(version, suite, texts):
    """Runs the trials of a suite, and repeats their output. Returns how many passed, and what is wrong, if anything."""
    environment = {
        **os.environ,
        "OUTBOX_RELAY_TEST_POSTGRES": str(version),
        "OUTBOX_RELAY_TEST_TRIALS": " ".join(texts),
        # Binaries that cannot be fetched are a failure and not a reason to skip.
        "OUTBOX_RELAY_REQUIRE_REAL": "1",
    }
    command = ["cargo", "test", "--locked", "--test", suite]
    passed = 0
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as suite_run:
        for line in suite_run.stdout:
            print(line, end="", flush=True)
            if result := RESULT.match(line):
                passed += int(result[1])
    if suite_run.returncode != 0:
        return passed, "failed"
    return passed, None if passed else "ran no trial"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", type=int, metavar="VERSION", help=f"of {SUPPORTED}")
    parser.add_argument("--short", action="store_true", help="CI's part of the core, by default on two versions")
    arguments = parser.parse_args()
    given = arguments.versions or [int(version) for version in os.environ.get("OUTBOX_RELAY_POSTGRES_VERSIONS", "").split()]
    versions = given or (pair_of(datetime.date.today()) if arguments.short else SUPPORTED)
    unknown = [version for version in versions if version not in SUPPORTED]
    if unknown:
        sys.exit(f"{unknown} are not among the supported versions {SUPPORTED}")
    print(f"Postgres {versions}; OUTBOX_RELAY_POSTGRES_VERSIONS=\"{' '.join(map(str, versions))}\" repeats this", flush=True)
    wrong, summary = [], []
    for version in versions:
        for suite, (short, more) in CORE.items():
            print(f"\n== Postgres {version}, {suite}", flush=True)
            began = time.monotonic()
            passed, problem = run(version, suite, short if arguments.short else short + more)
            took = time.monotonic() - began
            summary.append(f"Postgres {version}, {suite}: {problem.upper() if problem else 'passed'}, {passed} trials passed in {took:.0f} s")
            if problem:
                wrong.append(f"{suite} on Postgres {version} {problem}")
    print("\n" + "\n".join(summary), flush=True)
    sys.exit("error: " + ", ".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
