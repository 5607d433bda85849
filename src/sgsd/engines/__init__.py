"""What needs a framework: models, servers, embedders, file loaders."""
