"""Numbers that models begin from and are read by: NumPy in, NumPy out, without any network."""
