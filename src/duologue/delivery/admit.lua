-- KEYS 1 note of the message, 2 rate, 3 rate of repeats, 4 the user's messages without outcome: a sorted set by the
-- milliseconds of their admission. ARGV 1 requests, 2 window in microseconds, 3 message, 4 how many may be without
-- outcome, 5 how many as the system is loaded. Returns whether the message is a known repeat (1 or 0), the microseconds
-- to wait (0: as long as whoever asks thinks), and what refuses it: 0 nothing, 1 the rate, 2 the system's load, 3 that
-- too many are without outcome.
-- A repeat is looked up first: a client that resends what it lost sight of must not run into a limit by that. Only ten
-- times the rate stops it.
local PENDING_SECONDS = 3600
local repeated = redis.call('EXISTS', KEYS[1])
if repeated == 1 then
  local wait = limited_us(KEYS[3], ARGV[1] * 10, tonumber(ARGV[2]))
  return { 1, wait, wait > 0 and 1 or 0 }
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local by_user, by_load = tonumber(ARGV[4]), tonumber(ARGV[5])
local pending = redis.call('ZCARD', KEYS[4])
if (pending >= by_user or pending >= by_load)
  and not redis.call('ZSCORE', KEYS[4], ARGV[3]) then -- else it is on its way to the log already
  -- One whose end was not counted is forgotten with its age, or it would count against the user for good.
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - PENDING_SECONDS * 1000)
  pending = redis.call('ZCARD', KEYS[4])
  if pending >= by_user then return { 0, 0, 3 } end
  if pending >= by_load then return { 0, 0, 2 } end
end
local wait = limited_us(KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2]))
if wait > 0 then return { 0, wait, 1 } end
redis.call('ZADD', KEYS[4], 'NX', string.format('%.0f', now), ARGV[3])
redis.call('EXPIRE', KEYS[4], PENDING_SECONDS)
return { 0, 0, 0 }
