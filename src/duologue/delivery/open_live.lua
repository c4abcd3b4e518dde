-- Opens a live text, or opens it anew with what its worker has. ARGV 5 message, 6 attempt, 7 seq, 8 conversation, 9 text,
-- 10 '1' if anew, from 11 the frames to publish. Returns 1, or 0 if it is refused: that attempt or a later one has ended,
-- or a later one is open. Opening again what has begun is refused too, unless it is anew: it would wipe the text.
local message, attempt, seq, anew = ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[10] == '1'
local field = 'l:' .. message
local live = load_number(field)
local ended = tonumber(redis.call('GET', ended_key(message)) or nil)
if ended and ended >= attempt then return 0 end
if live then
  local open_attempt, open_seq = string.match(live, '^(%d+) (%d+) ')
  open_attempt = tonumber(open_attempt)
  if open_attempt > attempt or (open_attempt == attempt and open_seq ~= '0' and not anew) then return 0 end
end
redis.call('SET', live_key(message), ARGV[9], 'PX', LIVE_MS)
for i = 11, #ARGV do publish('o', '-', ARGV[i]) end
redis.call('HSET', state_key, 'number', number, field, attempt .. ' ' .. seq .. ' ' .. #ARGV[9] .. ' ' .. ARGV[8])
return 1
