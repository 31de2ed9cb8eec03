"""Can a training start here? Checks that end in findings, each with the command that mends it."""
