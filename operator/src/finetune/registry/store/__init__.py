"""What the registry can do, as transactions on the database. No HTTP and no callers' rights here."""
