"""pellucid beside other engines, on one machine, in turn. See docs/performance.md."""
