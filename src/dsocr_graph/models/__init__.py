"""Models as exportable nn.Modules, one package each."""
