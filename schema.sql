-- The whole database: one file, fireside.db in the data directory.
--
-- Times are text, ISO 8601 in UTC with microseconds and without an offset ('2024-01-15T10:30:00.123456'), so they sort
-- chronologically. Columns that hold JSON say so. AUTOINCREMENT never reuses an id, so a stale tab cannot reach another user's row.
-- This script creates a new file; those in migrations/ upgrade an older one, and a test proves that both give the same schema.

CREATE TABLE users (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    username      TEXT NOT NULL UNIQUE,                        -- the name in NFKC and case-folded, so that Ä and ä are one
    password_hash TEXT NOT NULL,                               -- Argon2id
    role          TEXT NOT NULL CHECK (role IN ('user', 'admin')),
    status        TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    created_at    TEXT NOT NULL,
    last_login    TEXT,
    defaults      TEXT NOT NULL DEFAULT '{}',                  -- JSON {"system_prompt"?, "settings"?} of new conversations, if no preset is the default
    stored_bytes  INTEGER NOT NULL DEFAULT 0,                  -- UTF-8 of the user's messages, system prompts and saved prompts, and attachments with their text
    display_name  TEXT NOT NULL DEFAULT '',                    -- the name as typed, such as 'Änna Smith'; '': the username is shown
    closed_at     TEXT                                         -- time of the account's deletion, while its data is being removed
) STRICT;

CREATE TABLE sessions (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    token_hash  BLOB NOT NULL UNIQUE,                          -- SHA-256 of the 32 random bytes in the cookie
    client      TEXT NOT NULL,                                 -- the browser's User-Agent, shortened
    created_at  TEXT NOT NULL,
    last_seen   TEXT NOT NULL                                  -- within about a minute: not written for every request
) STRICT;
CREATE INDEX sessions_of_user ON sessions (user_id);

CREATE TABLE invites (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    code_hash   BLOB NOT NULL UNIQUE,                          -- SHA-256; the code itself is shown once
    role        TEXT NOT NULL CHECK (role IN ('user', 'admin')),
    created_by  INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at  TEXT NOT NULL,
    expires_at  TEXT NOT NULL,
    used_by     INTEGER REFERENCES users (id) ON DELETE SET NULL,
    used_at     TEXT,
    revoked_at  TEXT
) STRICT;

CREATE TABLE login_links (
    token_hash  BLOB PRIMARY KEY,                              -- SHA-256; using the link deletes the row
    user_id     INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires_at  TEXT NOT NULL,
    resets_password INTEGER NOT NULL DEFAULT 0 CHECK (resets_password IN (0, 1)) -- 1: sets a new password; 0: signs in without one
) STRICT;

-- Personal access tokens: what other programs send to /v1. Revoking one deletes its row.
CREATE TABLE tokens (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    token_hash  BLOB NOT NULL UNIQUE,                          -- SHA-256; the token itself is shown once
    record      INTEGER NOT NULL CHECK (record IN (0, 1)),     -- 1: what passes is kept as conversations
    created_at  TEXT NOT NULL,
    expires_at  TEXT,                                          -- NULL: never
    last_used   TEXT,                                          -- within about a minute, as sessions.last_seen
    requests    INTEGER NOT NULL DEFAULT 0                     -- POST requests to /v1
) STRICT;
CREATE INDEX tokens_of_user ON tokens (user_id);

CREATE TABLE folders (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name        TEXT NOT NULL CHECK (length(name) <= 100),
    UNIQUE (user_id, name)
) STRICT;

CREATE TABLE conversations (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id           INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    title             TEXT NOT NULL CHECK (length(title) <= 200),
    title_key         TEXT NOT NULL,                           -- case-folded title, for the filter of the list
    named             INTEGER NOT NULL DEFAULT 0 CHECK (named IN (0, 1)), -- 1: the user chose the title; 0: it follows the first message
    system_prompt     TEXT NOT NULL DEFAULT '',
    provider_id       TEXT,                                    -- of the last answer; NULL before the first one
    model             TEXT,
    settings          TEXT NOT NULL DEFAULT '{}',              -- JSON object of generation parameters
    pinned            INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1)),
    active_message_id INTEGER REFERENCES messages (id),        -- leaf of the path that is shown and sent
    source            TEXT,                                    -- origin of an import, such as 'chatgpt:<uuid>'
    created_at        TEXT NOT NULL,
    updated_at        TEXT NOT NULL,                           -- time of the last message; renaming does not change it
    deleted_at        TEXT,                                    -- time of the move to the bin; removed 30 days later
    hidden            INTEGER NOT NULL DEFAULT 0 CHECK (hidden IN (0, 1)), -- 1: an import, a copy or the removal is not finished
    deleted_from      INTEGER REFERENCES conversations (id) ON DELETE SET NULL, -- in the bin: it holds messages deleted from that conversation
    token_id          INTEGER REFERENCES tokens (id) ON DELETE SET NULL, -- of the program that began it through /v1
    token_name        TEXT,                                    -- name of that token, also after it was revoked
    folder_id         INTEGER REFERENCES folders (id) ON DELETE SET NULL,
    temporary         INTEGER NOT NULL DEFAULT 0 CHECK (temporary IN (0, 1)), -- 1: in no list, and removed when it is left
    UNIQUE (user_id, source)
) STRICT;
-- These two cover the filters of the list.
CREATE INDEX conversations_by_activity ON conversations
    (user_id, updated_at, id, title_key, deleted_at, hidden, temporary, folder_id) WHERE deleted_at IS NULL;
CREATE INDEX conversations_by_name     ON conversations
    (user_id, title_key, id, deleted_at, hidden, temporary, folder_id) WHERE deleted_at IS NULL;
CREATE INDEX conversations_in_folder   ON conversations (folder_id, deleted_at, hidden, temporary) WHERE folder_id IS NOT NULL;
CREATE INDEX conversations_temporary   ON conversations (updated_at) WHERE temporary = 1;
CREATE INDEX conversations_pinned      ON conversations (user_id, updated_at, id) WHERE deleted_at IS NULL AND pinned;
CREATE INDEX conversations_in_bin      ON conversations (user_id, deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX conversations_hidden      ON conversations (user_id) WHERE hidden = 1;
CREATE INDEX conversations_deleted_from ON conversations (deleted_from) WHERE deleted_from IS NOT NULL;
CREATE INDEX conversations_of_token    ON conversations (token_id) WHERE token_id IS NOT NULL;
CREATE INDEX conversations_of_leaf     ON conversations (active_message_id); -- else deleting a message reads all conversations

-- Messages form a tree: an edited question and another version of an answer are siblings. Nothing is overwritten.
CREATE TABLE messages (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    parent_id       INTEGER REFERENCES messages (id),          -- NULL: a first message. No cascade: SQLite limits cascades to 1,000 levels
    created_at      TEXT NOT NULL,                             -- before the long columns, so that SQLite need not read those
    role            TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    content         TEXT NOT NULL,                             -- '' while the answer is generated (see generation_parts)
    reasoning       TEXT NOT NULL DEFAULT '',                  -- what the model wrote before the answer
    status          TEXT NOT NULL CHECK (status IN ('complete', 'generating', 'canceled', 'interrupted', 'error')),
    provider_id     TEXT,                                      -- NULL in questions
    model           TEXT,                                      -- the model that answered, as the provider reports it
    token_usage     TEXT,                                      -- JSON {"prompt_tokens", "completion_tokens", "total_tokens"}
    stats           TEXT,                                      -- JSON; docs/api.md names the fields
    error           TEXT,                                      -- JSON {"code", "message"} when status is 'error'
    client_id       TEXT,                                      -- chosen by the client: repeating a request adds nothing
    source          TEXT,                                      -- the message's id in the imported file
    edited          INTEGER NOT NULL DEFAULT 0,                -- 1: an answer whose text the user has changed
    copied          INTEGER NOT NULL DEFAULT 0,                -- 1: copied from another conversation, which counts its tokens
    tools           TEXT,                                      -- JSON {"results", "calls"} of /v1: results of tools before this message, calls in it
    citations       TEXT,                                      -- JSON: the quotations of an answer, and where the documents have them
    UNIQUE (conversation_id, client_id),
    UNIQUE (conversation_id, source)
) STRICT;
CREATE INDEX messages_in_tree ON messages (conversation_id, parent_id, id);
CREATE INDEX messages_of_parent ON messages (parent_id);
CREATE UNIQUE INDEX one_generation_a_conversation ON messages (conversation_id) WHERE status = 'generating';

-- The true parents of messages that were moved because their parent was deleted, and of deleted messages. queries/bin.py restores by them.
CREATE TABLE former_parents (
    message_id INTEGER PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    parent_id  INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX former_parents_of ON former_parents (parent_id);

-- What a message that came through /v1 continues: the hash of the messages of a request up to this one (queries/recorder.py).
CREATE TABLE recorded_messages (
    message_id INTEGER PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    token_id   INTEGER NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    hash       BLOB NOT NULL                                   -- SHA-256
) STRICT;
CREATE INDEX recorded_messages_by_hash ON recorded_messages (token_id, hash);

-- Images and documents. A user's file is stored once, however many messages have it. queries/attachments.py removes it with the last.
CREATE TABLE attachments (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    sha256      BLOB,                                          -- of its data. NULL: it is being uploaded (with uploaded_at) or removed
    name        TEXT NOT NULL DEFAULT '',                      -- of the file that was uploaded last; '': an image without a file
    media_type  TEXT NOT NULL,                                 -- detected; while status is 'reading', as claimed
    size_bytes  INTEGER NOT NULL,                              -- of its data
    text_bytes  INTEGER NOT NULL DEFAULT 0,                    -- UTF-8 of its pages
    status      TEXT NOT NULL CHECK (status IN ('reading', 'ready', 'no_text', 'encrypted', 'failed')), -- images are 'ready'
    problem     TEXT,                                          -- for the person: why it has no text, or a remark such as the detected encoding
    unit        TEXT CHECK (unit IN ('page', 'slide', 'section')), -- what its pages are; NULL in images
    pages       INTEGER,                                       -- of a document that was read; while it is read, in all, if known
    characters  INTEGER NOT NULL DEFAULT 0,                    -- of its pages
    created_at  TEXT NOT NULL,
    uploaded_at TEXT,                                          -- time of the last upload, until a message has it: a day later it is removed
    UNIQUE (user_id, sha256)
) STRICT;
CREATE INDEX attachments_unread ON attachments (id) WHERE status = 'reading';
CREATE INDEX attachments_uploaded ON attachments (user_id, uploaded_at) WHERE uploaded_at IS NOT NULL;
CREATE INDEX attachments_removed ON attachments (id) WHERE sha256 IS NULL AND uploaded_at IS NULL;

-- The bytes in parts, so that a transaction that adds or removes some of them is short.
CREATE TABLE attachment_data (
    attachment_id INTEGER NOT NULL REFERENCES attachments (id) ON DELETE CASCADE,
    part          INTEGER NOT NULL,                            -- from 0
    data          BLOB NOT NULL,
    PRIMARY KEY (attachment_id, part)
) STRICT;

CREATE TABLE attachment_pages (
    id            INTEGER PRIMARY KEY,
    attachment_id INTEGER NOT NULL REFERENCES attachments (id) ON DELETE CASCADE,
    number        INTEGER NOT NULL,                            -- from 1
    text          TEXT NOT NULL,
    UNIQUE (attachment_id, number)
) STRICT;

CREATE TABLE message_attachments (
    message_id    INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    position      INTEGER NOT NULL,                            -- order within the message, from 0
    attachment_id INTEGER NOT NULL REFERENCES attachments (id),
    name          TEXT NOT NULL DEFAULT '',                    -- of the file when it was sent
    PRIMARY KEY (message_id, position)
) STRICT;
CREATE INDEX message_attachments_of ON message_attachments (attachment_id);

-- The pages of documents that were chosen for a question, and stay so.
CREATE TABLE sent_pages (
    message_id    INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE, -- of the question
    attachment_id INTEGER NOT NULL REFERENCES attachments (id) ON DELETE CASCADE,
    pages         TEXT NOT NULL,                               -- JSON [[first, last], ...]
    PRIMARY KEY (message_id, attachment_id)
) STRICT;
CREATE INDEX sent_pages_of ON sent_pages (attachment_id);

-- Messages that wait until the answer before them is complete. Then they become rows of `messages`.
CREATE TABLE queued_messages (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    content         TEXT NOT NULL,
    client_id       TEXT,
    created_at      TEXT NOT NULL,
    UNIQUE (conversation_id, client_id)
) STRICT;
CREATE INDEX queued_messages_in_order ON queued_messages (conversation_id, id);

-- As message_attachments.
CREATE TABLE queued_attachments (
    message_id    INTEGER NOT NULL REFERENCES queued_messages (id) ON DELETE CASCADE,
    position      INTEGER NOT NULL,
    attachment_id INTEGER NOT NULL REFERENCES attachments (id),
    name          TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message_id, position)
) STRICT;
CREATE INDEX queued_attachments_of ON queued_attachments (attachment_id);

-- How an answer was generated. `log` is the event log as a JSON array: a number n is a delta of n characters of the message's
-- content, -n a delta of n characters of its reasoning, an object any other event. With the two texts it replays the stream exactly
-- (docs/decisions/0003-event-log.md).
CREATE TABLE generations (
    id          TEXT PRIMARY KEY,                              -- a UUID
    message_id  INTEGER NOT NULL UNIQUE REFERENCES messages (id) ON DELETE CASCADE,
    provider_id TEXT NOT NULL,                                 -- as requested; messages.model is the model that answered
    model       TEXT NOT NULL,
    params      TEXT NOT NULL DEFAULT '{}',                    -- JSON, as sent to the provider
    log         TEXT NOT NULL DEFAULT '[]',
    request     TEXT                                           -- JSON: generations.SentRequest, but for the system prompt. NULL: not known
) STRICT;

-- The system prompts of requests, which `generations.request` names by their hash: a conversation's own may have changed since.
CREATE TABLE sent_system_prompts (
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    text_hash       BLOB NOT NULL,                             -- SHA-256
    text            TEXT NOT NULL,
    PRIMARY KEY (conversation_id, text_hash)
) STRICT;

-- The first part of an answer that was continued: its log, whose texts are the beginning of the message's.
CREATE TABLE continued_generations (
    id          TEXT PRIMARY KEY,                              -- a UUID
    message_id  INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    log         TEXT NOT NULL
) STRICT;
CREATE INDEX continued_generations_of_message ON continued_generations (message_id);

-- A running generation appends a row with each save. Its end moves the texts to `messages` and the log to `generations`, and deletes
-- the rows; after a crash the next start does that.
CREATE TABLE generation_parts (
    generation_id TEXT NOT NULL REFERENCES generations (id) ON DELETE CASCADE,
    first_event   INTEGER NOT NULL,                            -- id of the first event in `log`
    content       TEXT NOT NULL,
    reasoning     TEXT NOT NULL,
    log           TEXT NOT NULL,
    PRIMARY KEY (generation_id, first_event)
) STRICT;

CREATE TABLE prompts (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name        TEXT NOT NULL CHECK (length(name) <= 100),
    name_key    TEXT NOT NULL,                                 -- case-folded name
    content     TEXT NOT NULL,                                 -- may contain variables, as in 'Translate {{text}}'
    created_at  TEXT NOT NULL,
    updated_at  TEXT NOT NULL,
    UNIQUE (user_id, name_key)
) STRICT;

-- Instructions, a model and settings under a name. A new conversation copies them.
CREATE TABLE presets (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id       INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name          TEXT NOT NULL CHECK (length(name) <= 100),
    name_key      TEXT NOT NULL,                               -- case-folded name
    system_prompt TEXT NOT NULL DEFAULT '',
    provider_id   TEXT,
    model         TEXT,                                        -- NULL: the usual choice
    settings      TEXT NOT NULL DEFAULT '{}',                  -- JSON object of generation parameters
    is_default    INTEGER NOT NULL DEFAULT 0 CHECK (is_default IN (0, 1)), -- 1: new conversations begin with it
    created_at    TEXT NOT NULL,
    updated_at    TEXT NOT NULL,
    UNIQUE (user_id, name_key)
) STRICT;
CREATE UNIQUE INDEX one_default_preset_a_user ON presets (user_id) WHERE is_default = 1;

-- Full-text search. The text is that of search.words() (CJK in pairs of characters); `owner` is 'u' and the user's id, so that a search
-- finds only the user's own. search.py writes these tables when a text is final: a trigger would need trusted_schema.
CREATE VIRTUAL TABLE message_words USING fts5 (owner, text, content = '', tokenize = 'unicode61 remove_diacritics 2');
CREATE VIRTUAL TABLE title_words   USING fts5 (owner, text, content = '', tokenize = 'unicode61 remove_diacritics 2');
-- The rowid is attachment_pages.id. `owner` has two words: as above, and 'a' and the attachment's id.
CREATE VIRTUAL TABLE page_words    USING fts5 (owner, text, content = '', tokenize = 'unicode61 remove_diacritics 2');
