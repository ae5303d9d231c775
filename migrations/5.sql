ALTER TABLE users ADD COLUMN display_name TEXT NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN closed_at TEXT;
ALTER TABLE login_links ADD COLUMN resets_password INTEGER NOT NULL DEFAULT 0 CHECK (resets_password IN (0, 1));
ALTER TABLE generations ADD COLUMN request TEXT;
CREATE TABLE sent_system_prompts (
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    text_hash       BLOB NOT NULL,
    text            TEXT NOT NULL,
    PRIMARY KEY (conversation_id, text_hash)
) STRICT;
CREATE TABLE continued_generations (
    id          TEXT PRIMARY KEY,
    message_id  INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    log         TEXT NOT NULL
) STRICT;
CREATE INDEX continued_generations_of_message ON continued_generations (message_id);
CREATE TABLE prompts (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name        TEXT NOT NULL CHECK (length(name) <= 100),
    name_key    TEXT NOT NULL,
    content     TEXT NOT NULL,
    created_at  TEXT NOT NULL,
    updated_at  TEXT NOT NULL,
    UNIQUE (user_id, name_key)
) STRICT;
CREATE TABLE presets (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id       INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name          TEXT NOT NULL CHECK (length(name) <= 100),
    name_key      TEXT NOT NULL,
    system_prompt TEXT NOT NULL DEFAULT '',
    provider_id   TEXT,
    model         TEXT,
    settings      TEXT NOT NULL DEFAULT '{}',
    is_default    INTEGER NOT NULL DEFAULT 0 CHECK (is_default IN (0, 1)),
    created_at    TEXT NOT NULL,
    updated_at    TEXT NOT NULL,
    UNIQUE (user_id, name_key)
) STRICT;
CREATE UNIQUE INDEX one_default_preset_a_user ON presets (user_id) WHERE is_default = 1;
ALTER TABLE conversations ADD COLUMN deleted_from INTEGER REFERENCES conversations (id) ON DELETE SET NULL;
CREATE INDEX conversations_deleted_from ON conversations (deleted_from) WHERE deleted_from IS NOT NULL;
ALTER TABLE messages ADD COLUMN edited INTEGER NOT NULL DEFAULT 0;
ALTER TABLE messages ADD COLUMN copied INTEGER NOT NULL DEFAULT 0;
CREATE TABLE former_parents (
    message_id INTEGER PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    parent_id  INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX former_parents_of ON former_parents (parent_id);
CREATE TABLE tokens (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    token_hash  BLOB NOT NULL UNIQUE,
    record      INTEGER NOT NULL CHECK (record IN (0, 1)),
    created_at  TEXT NOT NULL,
    expires_at  TEXT,
    last_used   TEXT,
    requests    INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX tokens_of_user ON tokens (user_id);
ALTER TABLE conversations ADD COLUMN token_id INTEGER REFERENCES tokens (id) ON DELETE SET NULL;
ALTER TABLE conversations ADD COLUMN token_name TEXT;
CREATE INDEX conversations_of_token ON conversations (token_id) WHERE token_id IS NOT NULL;
CREATE TABLE queued_messages (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    content         TEXT NOT NULL,
    images          TEXT NOT NULL DEFAULT '[]',
    stored_bytes    INTEGER NOT NULL DEFAULT 0,
    client_id       TEXT,
    created_at      TEXT NOT NULL,
    UNIQUE (conversation_id, client_id)
) STRICT;
CREATE INDEX queued_messages_in_order ON queued_messages (conversation_id, id);
CREATE TABLE folders (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name        TEXT NOT NULL CHECK (length(name) <= 100),
    UNIQUE (user_id, name)
) STRICT;
ALTER TABLE conversations ADD COLUMN folder_id INTEGER REFERENCES folders (id) ON DELETE SET NULL;
ALTER TABLE conversations ADD COLUMN temporary INTEGER NOT NULL DEFAULT 0 CHECK (temporary IN (0, 1));
DROP INDEX conversations_by_activity;
CREATE INDEX conversations_by_activity ON conversations
    (user_id, updated_at, id, title_key, deleted_at, hidden, temporary, folder_id) WHERE deleted_at IS NULL;
CREATE INDEX conversations_by_name ON conversations
    (user_id, title_key, id, deleted_at, hidden, temporary, folder_id) WHERE deleted_at IS NULL;
CREATE INDEX conversations_in_folder ON conversations (folder_id, deleted_at, hidden, temporary) WHERE folder_id IS NOT NULL;
CREATE INDEX conversations_temporary ON conversations (updated_at) WHERE temporary = 1;
CREATE TABLE recorded_messages (
    message_id INTEGER PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    token_id   INTEGER NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    hash       BLOB NOT NULL
) STRICT;
CREATE INDEX recorded_messages_by_hash ON recorded_messages (token_id, hash);
ALTER TABLE messages ADD COLUMN tools TEXT;
