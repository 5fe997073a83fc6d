"""What the registry's pages take from other projects."""
