"""Numbers that settings are checked against; imports no torch."""

#: The sharpness from which on training the live gates alone gives the same mask; see `live`.
SHARP = 1e3
