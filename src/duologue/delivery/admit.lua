-- KEYS 1 note of the message, 2 rate, 3 rate of repeats. ARGV 1 requests, 2 window in microseconds. Returns whether the
-- message is a known repeat (1 or 0) and the microseconds to wait (0: admitted). A repeat is looked up first: a client
-- that resends what it lost sight of must not run into its limit by that. Only ten times the limit stops it.
local repeated = redis.call('EXISTS', KEYS[1])
if repeated == 1 then return { 1, limited_us(KEYS[3], ARGV[1] * 10, tonumber(ARGV[2])) } end
return { 0, limited_us(KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2])) }
