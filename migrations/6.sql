CREATE TABLE attachments (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    sha256      BLOB,
    name        TEXT NOT NULL DEFAULT '',
    media_type  TEXT NOT NULL,
    size_bytes  INTEGER NOT NULL,
    text_bytes  INTEGER NOT NULL DEFAULT 0,
    status      TEXT NOT NULL CHECK (status IN ('reading', 'ready', 'no_text', 'encrypted', 'failed')),
    problem     TEXT,
    unit        TEXT CHECK (unit IN ('page', 'slide', 'section')),
    pages       INTEGER,
    characters  INTEGER NOT NULL DEFAULT 0,
    created_at  TEXT NOT NULL,
    uploaded_at TEXT,
    UNIQUE (user_id, sha256)
) STRICT;
CREATE INDEX attachments_unread ON attachments (id) WHERE status = 'reading';
CREATE INDEX attachments_uploaded ON attachments (user_id, uploaded_at) WHERE uploaded_at IS NOT NULL;
CREATE INDEX attachments_removed ON attachments (id) WHERE sha256 IS NULL AND uploaded_at IS NULL;
CREATE TABLE attachment_data (
    attachment_id INTEGER NOT NULL REFERENCES attachments (id) ON DELETE CASCADE,
    part          INTEGER NOT NULL,
    data          BLOB NOT NULL,
    PRIMARY KEY (attachment_id, part)
) STRICT;
CREATE TABLE attachment_pages (
    id            INTEGER PRIMARY KEY,
    attachment_id INTEGER NOT NULL REFERENCES attachments (id) ON DELETE CASCADE,
    number        INTEGER NOT NULL,
    text          TEXT NOT NULL,
    UNIQUE (attachment_id, number)
) STRICT;
CREATE TABLE message_attachments (
    message_id    INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    position      INTEGER NOT NULL,
    attachment_id INTEGER NOT NULL REFERENCES attachments (id),
    name          TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message_id, position)
) STRICT;
CREATE INDEX message_attachments_of ON message_attachments (attachment_id);
CREATE TABLE sent_pages (
    message_id    INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    attachment_id INTEGER NOT NULL REFERENCES attachments (id) ON DELETE CASCADE,
    pages         TEXT NOT NULL,
    PRIMARY KEY (message_id, attachment_id)
) STRICT;
CREATE INDEX sent_pages_of ON sent_pages (attachment_id);
CREATE TABLE queued_attachments (
    message_id    INTEGER NOT NULL REFERENCES queued_messages (id) ON DELETE CASCADE,
    position      INTEGER NOT NULL,
    attachment_id INTEGER NOT NULL REFERENCES attachments (id),
    name          TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message_id, position)
) STRICT;
CREATE INDEX queued_attachments_of ON queued_attachments (attachment_id);
CREATE VIRTUAL TABLE page_words USING fts5 (owner, text, content = '', tokenize = 'unicode61 remove_diacritics 2');
INSERT INTO sqlite_sequence (name, seq) SELECT 'attachments', seq FROM sqlite_sequence WHERE name = 'images';
INSERT INTO attachments (id, user_id, sha256, media_type, size_bytes, status, created_at)
    SELECT i.id, c.user_id, sha256(i.data), i.media_type, length(i.data), 'ready', m.created_at
    FROM images i CROSS JOIN messages m ON m.id = i.message_id CROSS JOIN conversations c ON c.id = m.conversation_id
    WHERE true ORDER BY i.id ON CONFLICT DO NOTHING;
INSERT INTO attachment_data (attachment_id, part, data) SELECT a.id, 0, i.data FROM attachments a CROSS JOIN images i ON i.id = a.id;
INSERT INTO message_attachments (message_id, position, attachment_id)
    SELECT i.message_id, i.position, a.id
    FROM images i CROSS JOIN messages m ON m.id = i.message_id CROSS JOIN conversations c ON c.id = m.conversation_id
    CROSS JOIN attachments a ON a.user_id = c.user_id AND a.sha256 = sha256(i.data);
CREATE TEMP TABLE queued_images AS
    SELECT q.id AS message_id, i.key AS position, c.user_id, q.created_at, json_extract(i.value, '$.media_type') AS media_type,
        base64_decode(json_extract(i.value, '$.data')) AS data
    FROM queued_messages q CROSS JOIN conversations c ON c.id = q.conversation_id CROSS JOIN json_each(q.images) i;
INSERT INTO attachments (user_id, sha256, media_type, size_bytes, status, created_at)
    SELECT user_id, sha256(data), media_type, length(data), 'ready', created_at FROM queued_images
    WHERE true ON CONFLICT DO NOTHING;
INSERT INTO queued_attachments (message_id, position, attachment_id)
    SELECT q.message_id, q.position, a.id
    FROM queued_images q CROSS JOIN attachments a ON a.user_id = q.user_id AND a.sha256 = sha256(q.data);
INSERT INTO attachment_data (attachment_id, part, data)
    SELECT l.attachment_id, 0, q.data
    FROM queued_images q CROSS JOIN queued_attachments l ON l.message_id = q.message_id AND l.position = q.position
    WHERE true ON CONFLICT DO NOTHING;
UPDATE users SET stored_bytes = stored_bytes
    + (SELECT coalesce(sum(a.size_bytes), 0) FROM attachments a WHERE a.user_id = users.id)
    - (SELECT coalesce(sum(a.size_bytes), 0) FROM conversations c JOIN messages m ON m.conversation_id = c.id
        JOIN message_attachments l ON l.message_id = m.id JOIN attachments a ON a.id = l.attachment_id WHERE c.user_id = users.id)
    - (SELECT coalesce(sum(length(q.data)), 0) FROM queued_images q WHERE q.user_id = users.id);
DROP TABLE queued_images;
DROP TABLE images;
ALTER TABLE queued_messages DROP COLUMN images;
ALTER TABLE queued_messages DROP COLUMN stored_bytes;
ALTER TABLE messages ADD COLUMN citations TEXT;
