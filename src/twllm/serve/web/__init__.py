"""The pages (static/) and the routes that only they ask."""
