"""Pages: runs, adapters and datasets of the registry in a browser.

`mount` hangs them into the registry's application below `/ui`. A request goes from `routes` to the stores, from their
documents to the view models of `views` (pure functions), and from there to `templates`. Everything works without
JavaScript but that pages renew themselves.
"""
