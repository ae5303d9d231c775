"""The handlers of server.ROUTES.

A handler gets an authorized request and its validated body or query, and returns a value that is sent as JSON, or a Response. Its annotation
is the type of the JSON in both cases, or the media types of other content; GET /openapi.json describes that.
The SQL is in queries/, whose functions the handlers pass to the database.
"""
