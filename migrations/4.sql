DROP TABLE title_letters;
UPDATE users SET stored_bytes = (
    SELECT coalesce(sum(length(CAST(c.system_prompt AS BLOB)) + (
        SELECT coalesce(sum(length(CAST(m.content AS BLOB)) + length(CAST(m.reasoning AS BLOB))
            + (SELECT coalesce(sum(length(i.data)), 0) FROM images i WHERE i.message_id = m.id)), 0)
        FROM messages m WHERE m.conversation_id = c.id)), 0)
    FROM conversations c WHERE c.user_id = users.id
);
