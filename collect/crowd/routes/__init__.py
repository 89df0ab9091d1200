"""The site's pages and interfaces: each module offers a `router`, which `create_app` finds."""
