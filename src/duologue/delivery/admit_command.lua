-- A stop or a regenerate. KEYS 1 what is noted of it, 2 rate, 3 rate of repeats. ARGV 1 requests, 2 window in
-- microseconds, 3 '1' if it counts like a message. Returns the note (nil: there is none) and the microseconds to wait
-- (0: admitted). What is a repeat, or counts less than a message, is stopped by ten times the limit only.
local note = redis.call('GET', KEYS[1])
if note or ARGV[3] ~= '1' then return { note, limited_us(KEYS[3], ARGV[1] * 10, tonumber(ARGV[2])) } end
return { false, limited_us(KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2])) }
