ALTER TABLE users ADD COLUMN stored_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0 CHECK (hidden IN (0, 1));
DROP INDEX conversations_by_activity;
CREATE INDEX conversations_by_activity ON conversations (user_id, updated_at, id, title_key, deleted_at, hidden)
    WHERE deleted_at IS NULL;
CREATE INDEX conversations_hidden ON conversations (user_id) WHERE hidden = 1;
