"""Tests of surface.py: each part of the surface is read, and each kind of change is told from the others."""

import copy
import unittest

import surface

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n{}\n\n## [0.3.1]\n\n### Removed\n\n- `RELAY_BATCH_SIZE` is gone.\n"


def judged(change, version="0.3.2", lines="", releasing=True, released="0.3.1"):
    """Returns the mistakes of a release after `change` was made to the surface."""
    before = surface.surface()
    after = copy.deepcopy(before)
    change(after)
    base = {"version": released, "surface": before}
    return surface.judge(after, base, version, CHANGELOG.format(lines), releasing)[1]


class Reading(unittest.TestCase):
    def test_every_part_is_read(self):
        now = surface.surface()
        self.assertEqual(now["settings"]["RELAY_BATCH_SIZE"], "default `2000`; an integer from 1 to 100000")
        self.assertEqual(now["codes"]["OR-2001"], "database-unreachable")
        self.assertEqual(now["metrics"]["outbox_relay_build_info"], "gauge; labels: version")
        self.assertEqual(now["commands"]["outbox-relay dead retry --reason"], "takes <REASON>")
        self.assertEqual(now["commands"]["outbox-relay dead retry exit code 1"], "exit code")
        self.assertEqual(now["json"]["status backlog pending"], "integer; always there")
        # By a reference into common.json, and within an array.
        self.assertEqual(now["json"]["check findings[] id"], "string; always there")
        self.assertEqual(now["findings"]["secret-readable"], "warning")
        self.assertEqual(now["notices"]["ready"], "notice")
        self.assertEqual(now["sql"]["view event_outbox_health"], "view")
        self.assertEqual(now["sql"]["table column event_outbox.payload"], "jsonb")
        once = "(consumer_group text, event_id uuid)"
        self.assertEqual(now["sql"][f"function event_once{once}"], f"{once} returns boolean")

    def test_nothing_changed_needs_nothing(self):
        self.assertEqual(judged(lambda now: None), [])


class Changes(unittest.TestCase):
    def test_what_is_gone_needs_a_line_that_names_it_and_a_version_that_breaks(self):
        for part, name in (
            ("settings", "RELAY_BATCH_SIZE"),
            ("codes", "OR-2001"),
            ("metrics", "outbox_relay_build_info"),
            ("commands", "outbox-relay dead retry --reason"),
            ("json", "status backlog pending"),
            ("sql", "table column event_outbox.payload"),
            ("sql", "function event_once(consumer_group text, event_id uuid)"),
            ("notices", "ready"),
            ("findings", "secret-readable"),
        ):
            with self.subTest(name):
                line, version = judged(lambda now: now[part].pop(name))
                self.assertIn(f"{name} is gone", line)
                self.assertIn("in Changed or Removed", line)
                self.assertIn("has to be 0.4.0 or higher", version)
                key = name.partition("(")[0].replace(".", " ").split()[-1]
                lines = f"### Removed\n\n- `{key}` did harm."
                self.assertEqual(judged(lambda now: now[part].pop(name), version="0.4.0", lines=lines), [])

    def test_another_default_type_or_label_breaks(self):
        for part, name in (("settings", "RELAY_BATCH_SIZE"), ("json", "status backlog pending"), ("metrics", "outbox_relay_build_info")):
            with self.subTest(name):
                mistakes = judged(lambda now: now[part].update({name: "another"}))
                self.assertEqual(len(mistakes), 2, mistakes)
                self.assertIn("has changed", mistakes[0])

    def test_what_is_new_needs_a_line_and_no_version_that_breaks(self):
        add = lambda now: now["settings"].update({"RELAY_NEW": "default none; text"})
        self.assertEqual(len(judged(add)), 1)
        self.assertIn("in Added", judged(add)[0])
        self.assertEqual(judged(add, lines="### Added\n\n- `RELAY_NEW`."), [])

    def test_a_member_that_is_always_there_from_now_on_breaks_nobody(self):
        before = {"json": {"status x": "string; may be missing"}}
        after = {"json": {"status x": "string; always there"}}
        self.assertEqual([change[0] for change in surface.compare(before, after)], [False])
        self.assertEqual([change[0] for change in surface.compare(after, before)], [True])

    def test_from_1_0_on_the_first_number_stands_for_what_breaks_and_the_second_for_what_is_new(self):
        self.assertEqual(surface.next_version("1.4.2", [(True, "", "")]), "2.0.0")
        self.assertEqual(surface.next_version("1.4.2", [(False, "", "")]), "1.5.0")
        self.assertEqual(surface.next_version("1.4.2", []), "1.4.3")

    def test_between_releases_the_version_may_lag_behind_the_changelog_may_not(self):
        mistakes = judged(lambda now: now["codes"].pop("OR-2001"), releasing=False)
        self.assertEqual(len(mistakes), 1, mistakes)

    def test_before_the_first_release_nothing_is_promised(self):
        self.assertEqual(surface.judge(surface.surface(), None, "0.1.0", "", True)[1], [])


if __name__ == "__main__":
    unittest.main()
