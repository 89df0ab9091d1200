"""What stands between the public and the site: sessions, CSRF, headers, limits, redirects."""
