package outbox_test

const childMark = "MILLRACE_OUTBOX_CHILD"

func child() {}
