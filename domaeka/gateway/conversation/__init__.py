"""A phone's conversation: L{Conversation} is the only face of this folder."""

from domaeka.gateway.conversation.conversation import Conversation as Conversation
