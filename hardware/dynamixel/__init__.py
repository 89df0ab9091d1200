"""Dynamixel X-series servos: the bus driver, and a virtual bus that speaks the same wire.

`bus` drives servos through `dynamixel_sdk`; `virtual` answers, packet by packet, behind a
pseudo-terminal; `control_table` holds the registers that both know.
"""
