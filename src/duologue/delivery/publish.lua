-- Publishes frames that are not durable. ARGV 5 kind, 6 the sender ('-': none), from 7 the frames.
load_number('run')
-- Written first: if Redis refuses writes (out of memory, disk full), no number may be out that is not counted, or the
-- next publication would look like a repeat of it. Every other script writes before it publishes anyway.
redis.call('HSET', state_key, 'number', number + #ARGV - 6)
for i = 7, #ARGV do publish(ARGV[5], ARGV[6], ARGV[i]) end
return 1
