-- KEYS 1 rate. ARGV 1 requests, 2 window in microseconds. Returns the microseconds to wait (0: admitted).
return limited_us(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]))
