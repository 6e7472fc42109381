"""The leak probe: does one example's loss or gradient depend on another's? Found by running."""
