"""From a Conversation to TokenizedExamples with exact loss masks.

- `overflow` makes examples of at most `max_seq_len` tokens, with the help of the other modules.
- `render` renders a conversation with the chat template.
- `turns` finds the assistant's turns in the rendered text.
- `shortcut` is a faster way to find the turns. It calls `turns` for rows that it can't handle.
- `encode` turns texts and their target characters into token ids and loss masks.
"""
