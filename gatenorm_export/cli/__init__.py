"""The command line: one thin file per verb; nothing heavy is imported before a verb needs it."""
