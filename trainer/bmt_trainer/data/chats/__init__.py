"""Chats: their messages in one form, and the chat templates that write them as text."""
