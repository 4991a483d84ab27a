"""Texts for the chat, in Korean: for the people in its rooms, operators among them."""

from typing import Final

# Answers of the dispatcher
BUSY_TEXT: Final = "지금은 요청이 많아 받지 못했습니다. 잠시 뒤에 다시 보내 주세요."
FAILED_TEXT: Final = "요청을 처리하다가 오류가 났습니다."
TIMEOUT_TEXT: Final = "시간이 너무 오래 걸려 요청을 그만두었습니다."
LATE_TEXT: Final = "앞의 요청이 많아 차례가 오지 않았습니다. 잠시 뒤에 다시 보내 주세요."
OPEN_TEXT: Final = "지금은 이 명령을 쓸 수 없습니다. 잠시 뒤에 다시 보내 주세요."
NO_ANSWER_TEXT: Final = "대답이 없어 그만두었습니다."
USAGE_TEXT: Final = "사용법: {usage}"
OPERATORS_TEXT: Final = "운영자만 쓸 수 있는 명령입니다."
NOT_ALLOWED_TEXT: Final = "이 명령을 쓸 권한이 없습니다."
COOLDOWN_TEXT: Final = "잠시 뒤에 다시 보내 주세요. ({left} 남음)"
LEFT_SECONDS: Final = "{}초"
LEFT_MINUTES: Final = "{}분"
LEFT_HOURS: Final = "{}시간"

# Arguments that do not fit; the usage of the command follows
ARGUMENT_UNFIT: Final = "{name}에 쓸 수 없는 값입니다: {given}\n쓸 수 있는 값: {wanted}"
ARGUMENT_MISSING: Final = "{name} 값이 빠졌습니다.\n쓸 수 있는 값: {wanted}"
ARGUMENTS_TOO_MANY: Final = "쓸 곳이 없는 말이 남았습니다: {given}"
ARGUMENT_OR: Final = " 또는 "
ARGUMENT_STR: Final = "글"
ARGUMENT_INT: Final = "정수"
ARGUMENT_FLOAT: Final = "수"
ARGUMENT_BOOL: Final = "예, 아니오"
ARGUMENT_CHOICE: Final = "{} 가운데 하나"
ARGUMENT_TRUE: Final = "예"
ARGUMENT_FALSE: Final = "아니오"

# Commands that are built in
ECHO_HELP: Final = "보낸 말을 그대로 돌려줍니다."
ECHO_USAGE: Final = "사용법: {name} <보낼 말>"
HELP_HELP: Final = "쓸 수 있는 명령을 보여 줍니다."
HELP_TITLE: Final = "쓸 수 있는 명령"
CLIENT_INFO_HELP: Final = "이 방의 봇이 도는 기기를 보여 줍니다."
CLIENT_INFO_TITLE: Final = "클라이언트 정보"

# A device, as C{# client_info} shows it
DEVICE_BOT: Final = "봇"
DEVICE_ID: Final = "기기"
DEVICE_SCRIPT: Final = "스크립트"
DEVICE_MODEL: Final = "기종"
DEVICE_ADDRESS: Final = "주소"
DEVICE_AGE: Final = "연결 시간"
DEVICE_AGE_SECONDS: Final = "{:.0f}초"
DEVICE_ROUND_TRIP: Final = "왕복 시간"
DEVICE_RECEIVED: Final = "받은 메시지"
DEVICE_SENT: Final = "보낸 메시지"

# The answer to a handshake
APPROVED_TEXT: Final = "연결되었습니다."
NOT_APPROVED_TEXT: Final = "승인되지 않은 기기입니다. 운영자의 승인을 기다려 주세요."

# The rooms and the people of C{domaeka chat}
CHAT_ROOMS: Final = ("첫째방", "둘째방")
CHAT_PEOPLE: Final = ("김하늘", "이바다")
