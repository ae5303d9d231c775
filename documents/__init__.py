"""Documents: their text, read in a sandbox child, the pages that go into a prompt, and quotations looked up in them."""
