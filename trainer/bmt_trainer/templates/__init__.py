"""Chat templates, and those that the package ships, each as NAME.jinja and NAME.response.json."""
