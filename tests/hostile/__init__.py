"""Bad input for every command, made at random from a seed."""
