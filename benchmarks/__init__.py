"""Speed and memory, as ratios against a named baseline measured in the same run. Never part of the tests."""
