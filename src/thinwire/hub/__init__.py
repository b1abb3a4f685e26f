"""The hub: asynchronous training over the internet; workers join and leave as they like."""
