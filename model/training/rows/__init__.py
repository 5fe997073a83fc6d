"""From exported rows to tokens: rendered, encoded, cut, reported."""
