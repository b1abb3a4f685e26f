"""The fuzzer is a program of its own, and needs what not every machine has."""

collect_ignore = ["fuzz_decoders.py"]
