"""The public site: kiosk, leaderboard, review desk, and the data that comes of it."""
