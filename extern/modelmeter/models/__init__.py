"""Models shipped as data: one package each, found by `modelmeter.load` through its entry point."""
