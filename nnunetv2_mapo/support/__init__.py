"""What every other room may use: files, devices, tables, errors."""
