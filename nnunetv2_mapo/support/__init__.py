"""What every other room may use: files, random numbers, memory, tables, errors."""
